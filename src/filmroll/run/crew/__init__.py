"""The processes of a run as one speaks to them: those that are lost come again, unless they are lost too often."""
