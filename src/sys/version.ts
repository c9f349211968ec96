/** The version of Sluice: that of package.json (a test holds them together). */
export const VERSION = "0.1.0";

/** A digest of the sources, in the executable (scripts/build.ts). */
declare const SOURCES: string | undefined;

/** The very program, for what it keeps for itself: another build may keep it in another form, or judge otherwise. */
export const BUILD = typeof SOURCES === "undefined" ? VERSION : `${VERSION}-${SOURCES}`;
