"""Hostile input, made in quantity: what `make fuzz` tries, and the suite a little of.

`targets` has what is tried and what must hold of what is accepted, `inputs` how inputs are
made, `bad_folder` a folder of every kind of bad file among good ones.
"""
