"""Explores the models and their mutations."""
