"""Sentences of known meaning: they set the scale of an embedder and identify courtesy phrases."""

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

COURTESIES = (
    "Thank you so much, I really appreciate it!",
    "Many thanks for all your help and kind words.",
    "I'm so grateful, it means a lot to me.",
    "Thanks again for everything, you've been wonderful.",
    "You're very welcome! I'm always happy to help.",
    "It was my pleasure, don't hesitate to reach out at any time.",
    "I'm glad I could help, I'm always here for you.",
    "No problem at all, anytime!",
    "Goodbye! Take care and have a great day!",
    "See you soon! Bye for now!",
    "Farewell, my friend, until we meet again!",
    "Wishing you all the best, take good care!",
    "Looking forward to seeing you, have a wonderful week!",
    "I'm so sorry, please accept my apologies.",
    "Don't worry, there is nothing to forgive, it was my fault.",
    "You are too kind, what a lovely thing to say.",
    "It has been a pleasure talking with you.",
)
"""Courtesy phrases. Loops of thanks and goodbyes vary their words, but each turn is similar to one of these. English,
like the reported loops; in other languages only the similarity to earlier turns counts."""
