// slug.ts
export function slug(text: string, most: u32 = 8): string {
  if (most == 0) throw new Error("no words are wanted");
  const words: string[] = [];
  let begin = -1;
  for (let i = 0; i <= text.length && <u32>words.length < most; i++) {
    const code = i < text.length ? text.charCodeAt(i) : 32;
    const space = code == 32 || (code >= 9 && code <= 13);
    if (!space && begin < 0) begin = i;
    if (space && begin >= 0) {
      words.push(text.substring(begin, i).toLowerCase());
      begin = -1;
    }
  }
  return words.join("-");
}

export function mean(values: Float64Array): f64 {
  let sum: f64 = 0;
  for (let i = 0; i < values.length; i++) sum += values[i];
  return sum / <f64>values.length;
}
