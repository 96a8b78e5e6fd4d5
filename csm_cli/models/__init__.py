"""The models: CSM's backbone and depth decoder, and the Mimi codec."""
