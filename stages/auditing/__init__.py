"""Auditing any generative model: its samples against its training images, beside real unseen images."""
