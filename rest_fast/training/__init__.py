"""How models are trained: prepared clips (:mod:`.shards`), the stages (:mod:`.chain`), drawn talking heads
(:mod:`.synthetic`)."""
