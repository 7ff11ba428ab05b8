"""What the pages tell a reader to do is done here, in their order, exactly as it stands there."""
