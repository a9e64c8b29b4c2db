"""Allrounder: serving frozen vision-language models at a compute budget chosen per request."""
