"""The embedded model "shapes": scene renderer, trainer and evaluation."""
