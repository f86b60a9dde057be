"""Evaluation of a model: likelihood of texts, and answers to questions."""
