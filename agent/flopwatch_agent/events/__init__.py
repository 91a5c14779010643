"""Events: what they mean (`catalogue`), which of two that say the same counts (`once`), and those that
readings tell (`onset`)."""
