/** A container's audit line and its receipt mostly are of one second. */
let last = { second: Number.NaN, text: "" };

/** Milliseconds since the epoch as RFC 3339 in UTC: `2026-01-31T12:00:00.000Z`. The engine has no Date. */
export function rfc3339(ms: number): string {
  const second = Math.floor(ms / 1000);
  if (last.second !== second) last = { second, text: written(second) };
  return `${last.text}.${pad(ms - second * 1000, 3)}Z`;
}

function written(seconds: number): string {
  const days = Math.floor(seconds / 86_400);
  const rest = seconds - days * 86_400;
  return `${dateOf(days)}T${pad(rest / 3600)}:${pad((rest / 60) % 60)}:${pad(rest % 60)}`;
}

function pad(n: number, width = 2): string {
  return String(Math.floor(n)).padStart(width, "0");
}

/** @param days since the epoch */
function dateOf(days: number): string {
  // Howard Hinnant's days-to-civil: years start in March, so that the leap day is the last of its year.
  const shifted = days + 719_468;
  const era = Math.floor(shifted / 146_097);
  const dayOfEra = shifted - era * 146_097;
  const yearOfEra = Math.floor(
    (dayOfEra - Math.floor(dayOfEra / 1460) + Math.floor(dayOfEra / 36_524) - Math.floor(dayOfEra / 146_096)) / 365,
  );
  const dayOfYear = dayOfEra - (365 * yearOfEra + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100));
  const marchMonth = Math.floor((5 * dayOfYear + 2) / 153);
  const day = dayOfYear - Math.floor((153 * marchMonth + 2) / 5) + 1;
  const month = marchMonth < 10 ? marchMonth + 3 : marchMonth - 9;
  const year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0);
  return `${pad(year, 4)}-${pad(month)}-${pad(day)}`;
}
