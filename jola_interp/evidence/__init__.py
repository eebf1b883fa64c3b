"""Evidence: what must be true before anyone may write "JoLA localises this task to these heads"."""
