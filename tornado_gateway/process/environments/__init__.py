"""The environments of one worker: made from their configuration, started and stopped, and replaced at a reload."""
