/** Where a text stops being JSON. Engines word and place this differently, and QuickJS not at all. */

export interface JsonError {
  /** From 1; columns count UTF-16 code units. */
  line: number;
  column: number;
  /** What is wrong there, as an end of the sentence "line 3, column 7: ...". */
  what: string;
}

const NEXT_TOKEN = /[^ \t\n\r]/g;
const SCALAR_END = /[,:"[\]{} \t\n\r]/g;
/** What ends a string, or must not be in it. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: these are the characters that JSON does not allow
const STRING_STOP = /["\\\u0000-\u001f]/g;
const ESCAPE = /\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})/y;
const SCALAR = /^(?:true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?)$/;
/** A longer number is taken to be good: QuickJS needs memory for each character of a repetition. */
const SCALAR_MAX = 1000;

/** `undefined` if nothing is wrong: then a parser that failed ran out of stack or memory. */
export function locateJsonError(text: string): JsonError | undefined {
  if (text.startsWith("\ufeff")) return at(text, 0, "a byte order mark, which JSON does not allow");
  /** The closing character of each object and array that is open. */
  const open: string[] = [];
  /** What may come next; the `end` forms also take the closing character. */
  let expect: "value" | "value or end" | "key" | "key or end" | "colon" | "comma or end" = "value";
  let pos = 0;
  for (;;) {
    NEXT_TOKEN.lastIndex = pos;
    if (!NEXT_TOKEN.test(text)) {
      if (expect === "comma or end" && open.length === 0) return undefined;
      return at(text, text.length, `the text ends where ${nameOf(expect, open)} must come`);
    }
    pos = NEXT_TOKEN.lastIndex - 1;
    const c = text[pos] as string;
    const closes = c === open.at(-1) && expect.endsWith("or end");
    if (closes) {
      open.pop();
      expect = "comma or end";
      pos++;
    } else if (expect === "comma or end") {
      if (open.length === 0) return at(text, pos, "there is more behind the end of the value");
      if (c !== ",") return at(text, pos, `${nameOf(expect, open)} must come here`);
      expect = open.at(-1) === "}" ? "key" : "value";
      pos++;
    } else if (expect === "colon") {
      if (c !== ":") return at(text, pos, "a colon must come here");
      expect = "value";
      pos++;
    } else if (c === '"') {
      const end = stringEnd(text, pos);
      if (typeof end !== "number") return end;
      expect = expect.startsWith("key") ? "colon" : "comma or end";
      pos = end;
    } else if (expect.startsWith("key")) {
      return at(text, pos, `${nameOf(expect, open)} must come here`);
    } else if (c === "{" || c === "[") {
      open.push(c === "{" ? "}" : "]");
      expect = c === "{" ? "key or end" : "value or end";
      pos++;
    } else {
      SCALAR_END.lastIndex = pos;
      const end = SCALAR_END.test(text) ? SCALAR_END.lastIndex - 1 : text.length;
      if (end === pos || (end - pos <= SCALAR_MAX && !SCALAR.test(text.slice(pos, end)))) {
        return at(text, pos, `${nameOf(expect, open)} must come here`);
      }
      expect = "comma or end";
      pos = end;
    }
  }
}

function nameOf(expect: string, open: readonly string[]): string {
  const what = expect.startsWith("comma")
    ? "a comma"
    : expect.startsWith("key")
      ? "a key in quotes"
      : `a ${expect.split(" ")[0]}`;
  return expect.endsWith("or end") ? `${what} or ${open.at(-1)}` : what;
}

/** From the opening quote to behind the closing one. */
function stringEnd(text: string, start: number): number | JsonError {
  let pos = start + 1;
  for (;;) {
    STRING_STOP.lastIndex = pos;
    if (!STRING_STOP.test(text)) return at(text, start, "this string has no end");
    pos = STRING_STOP.lastIndex - 1;
    const c = text[pos];
    if (c === '"') return pos + 1;
    if (c !== "\\") return at(text, pos, "a control character must be escaped in a string");
    ESCAPE.lastIndex = pos;
    if (!ESCAPE.test(text)) return at(text, pos, "this escape does not exist");
    pos = ESCAPE.lastIndex;
  }
}

function at(text: string, offset: number, what: string): JsonError {
  const before = text.slice(0, offset);
  return { line: before.split("\n").length, column: offset - before.lastIndexOf("\n"), what };
}
