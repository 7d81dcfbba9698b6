"""Sentences of known meaning: they set the scale of an embedder."""

PARAPHRASES = (
    ("The museum opens at ten on weekdays.", "On working days you can visit the museum from ten o'clock."),
    ("My car would not start this morning.", "I could not get my car going today."),
    ("We should lower the price before summer.", "The price ought to come down ahead of the summer."),
    ("She plays the violin in a small orchestra.", "She is a violinist with a little orchestra."),
    ("The test fails because the file is missing.", "Since the file is not there, the test does not pass."),
    ("Rain is expected along the coast tonight.", "The coast will probably get rain this night."),
    ("He has been learning Spanish for two years.", "For two years he has studied Spanish."),
    ("The soup needs a little more salt.", "A bit of salt is still missing in the soup."),
    ("Our team lost the match in the last minute.", "In the final minute we were beaten in the game."),
    ("The bridge was closed for repairs.", "They shut the bridge to repair it."),
    ("Many voters are worried about their rents.", "What troubles a lot of voters is the cost of housing."),
    ("The dog is afraid of thunder.", "Thunder frightens the dog."),
)
"""Twelve sentences, each in two wordings."""
