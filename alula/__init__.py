"""alula: make trained models small and fast enough for where they must run, and prove that they still work."""
