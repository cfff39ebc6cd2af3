"""Processes of a run: started, watched, told to end, and ended with whatever they have started themselves."""
