"""Fuzzing of everything that a user may have been given by someone else: ``make fuzz``.

``guard`` says what counts as a failure, ``targets`` what is fed with inputs, ``engine`` makes the
inputs. ``corpus/`` holds seeds made by this project and every input that once failed.
"""
