"""How good is what a network writes: likelihood, and answers to questions."""
