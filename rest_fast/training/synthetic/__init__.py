"""Procedurally made training clips: espeak-ng speech, the mouth that belongs to it, and drawn faces."""
