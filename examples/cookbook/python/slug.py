# slug.py
import wit_world


class WitWorld(wit_world.WitWorld):
    def slug(self, title: str, most: int) -> str:
        if most == 0:
            raise ValueError("a slug has at least one word, not 0")
        return "-".join(title.lower().split()[:most])
