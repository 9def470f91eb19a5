"""What a trained model can do: instruments, measures, reports, pictures."""
