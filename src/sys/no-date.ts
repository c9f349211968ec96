/*
 * The TOML parser has a class for dates that extends Date, which the executable's engine is built without. It never
 * makes one here (config.part.ts, engines.part.ts), but the class must have something to extend. Imported before the parser.
 */
const scope: { Date?: unknown } = globalThis;
scope.Date ??= class {};
