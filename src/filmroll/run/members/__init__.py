"""What the processes of a run do, and who starts them on this machine."""
