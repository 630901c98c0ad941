"""How right a model is: held to its reference hop by hop, and to labels, with what the samples allow to say."""
