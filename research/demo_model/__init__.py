"""Training of the embedded LVLM from nothing: vision, words, decoder, export."""
