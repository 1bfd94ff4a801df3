"""The embedded model "stickers": graphics, scene renderer, recipe and evaluation."""
