"""Students on the hub: checked, described and pushed."""
