// Dialogues as text: `Ana: Hello.`, `[0] Hello.` and plain lines, in both directions.

const BEFORE_NUMBER = /(?=\[\d{1,3}\])/;
const NUMBERED = /^\s*\[(\d{1,3})\]:?\s*(.*)$/;
const LABELLED = /^\s*(?:[*_]{1,2})?([^\s:*_\[\]][^:*_\[\]]{0,39}?)(?:[*_]{1,2})?\s*:(?:[*_]{1,2})?\s+(\S.*)$/u;
// A label has few words and no punctuation: `He said: no` inside a sentence is rarely at the start of a line.
const isName = text => text.split(/\s+/).length <= 3 && !/[.,;!?"“”]/.test(text);

/** Turns as [{ label, text }]; label: a name, a number as `#0`, or null where the line has none. */
export function parseDialogue(text) {
  const turns = [];
  let continues = false; // a line without a label goes on with the turn before, unless a blank line is between
  for (const line of text.split(/\r\n|\r|\n/)) {
    if (!line.trim()) { continues = false; continue; }
    for (const piece of line.split(BEFORE_NUMBER).filter(each => each.trim())) {
      const number = NUMBERED.exec(piece), name = LABELLED.exec(piece);
      if (number) turns.push({ label: `#${Number(number[1])}`, text: number[2].trim() });
      else if (name && isName(name[1])) turns.push({ label: name[1].trim(), text: name[2].trim() });
      else if (continues && turns.length && turns.at(-1).label) turns.at(-1).text += ` ${piece.trim()}`;
      else turns.push({ label: null, text: piece.trim() });
    }
    continues = true;
  }
  return turns.filter(turn => turn.text);
}

/** The text that `parseDialogue` reads. speakers: Map of number to { name }. */
export const formatDialogue = (lines, speakers) => lines.map(({ speaker, text }) => {
  const { name } = speakers.get(speaker), isLabel = LABELLED.exec(`${name}: .`)?.[1] === name && isName(name);
  return `${isLabel ? `${name}:` : `[${speaker}]`} ${text.replace(/\s+/g, " ").trim()}`;
}).join("\n");

/**
 * Which of the old lines each new one is, or null: equal lines first, in order; what is left between two equal ones
 * is paired in order, so that an edited line keeps its takes until it is spoken again.
 */
export function matchLines(oldLines, newLines) {
  const equal = (one, two) => one.speaker === two.speaker && one.text === two.text;
  const rows = oldLines.length, columns = newLines.length;
  const common = Array.from({ length: rows + 1 }, () => new Uint16Array(columns + 1));
  for (let row = rows - 1; row >= 0; row--) {
    for (let column = columns - 1; column >= 0; column--) {
      common[row][column] = equal(oldLines[row], newLines[column])
        ? common[row + 1][column + 1] + 1
        : Math.max(common[row + 1][column], common[row][column + 1]);
    }
  }
  const matched = new Array(columns).fill(null);
  let row = 0, column = 0, oldGap = [], newGap = [];
  const pairGap = () => {
    newGap.forEach((index, order) => { matched[index] = oldGap[order] ?? null; });
    oldGap = []; newGap = [];
  };
  while (row < rows || column < columns) {
    if (row < rows && column < columns && equal(oldLines[row], newLines[column])) {
      pairGap();
      matched[column++] = oldLines[row++];
    } else if (column >= columns || (row < rows && common[row + 1][column] >= common[row][column + 1])) {
      oldGap.push(oldLines[row++]);
    } else newGap.push(column++);
  }
  pairGap();
  return matched;
}

export const EXAMPLE = `Ana: Shall we go for a walk today?
Ben: Yes, the sun is warm this morning.
Ana: We can walk down to the river.`;
