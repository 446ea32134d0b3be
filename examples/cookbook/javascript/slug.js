// slug.js
export function slug(title, most) {
    if (most === 0) throw new Error("a slug has at least one word, not 0");
    const words = title.toLowerCase().split(/\s+/).filter((word) => word);
    return words.slice(0, most).join("-");
}
