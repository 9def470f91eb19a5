"""How the demo weights are made: drawn talking heads (:mod:`.synthetic`) and two trainings (:mod:`.demo_weights`)."""
