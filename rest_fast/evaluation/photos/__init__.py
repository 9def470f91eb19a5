"""What a model makes of photographs, in numbers and strips; docs/photos.md says what each number means."""
