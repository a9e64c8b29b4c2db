"""What may come in, for the API and for batch jobs alike."""
