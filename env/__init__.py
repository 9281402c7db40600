"""What a machine needs: dependencies, set-up, bare roots."""
