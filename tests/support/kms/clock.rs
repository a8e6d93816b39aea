//! Dates as AWS and HTTP write them. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: u64 = 86_400;

struct Civil {
    year: u64,
    month: u64,
    day: u64,
    seconds: u64,
    weekday: usize,
}

/// `20150830T123600Z`, the form of `x-amz-date`.
pub(super) fn amz_date(time: SystemTime) -> String {
    let Civil { year, month, day, seconds, .. } = civil(time);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// Reads what [`amz_date`] writes, and nothing else.
pub(super) fn parse_amz_date(text: &str) -> Option<SystemTime> {
    let digits = |range: std::ops::Range<usize>| {
        text.get(range).filter(|part| part.bytes().all(|b| b.is_ascii_digit()))?.parse::<u64>().ok()
    };
    if text.len() != 16 || text.get(8..9) != Some("T") || text.get(15..) != Some("Z") {
        return None;
    }
    let (year, month, day) = (digits(0..4)?, digits(4..6)?, digits(6..8)?);
    let (hour, minute, second) = (digits(9..11)?, digits(11..13)?, digits(13..15)?);
    let in_range = year >= 1970
        && (1..=12).contains(&month)
        && (1..=month_length(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !in_range {
        return None;
    }
    let days = (1970..year).map(year_length).sum::<u64>()
        + (1..month).map(|month| month_length(year, month)).sum::<u64>()
        + day
        - 1;
    Some(UNIX_EPOCH + Duration::from_secs(days * DAY + hour * 3600 + minute * 60 + second))
}

/// `Sun, 30 Aug 2015 12:36:00 GMT` (RFC 9110, section 5.6.7).
pub(super) fn http_date(time: SystemTime) -> String {
    const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let Civil { year, month, day, seconds, weekday } = civil(time);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let (weekday, month) = (DAYS[weekday], MONTHS[month as usize - 1]);
    format!("{weekday}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT")
}

/// Seconds since 1970 with a fraction, as JSON 1.1 writes timestamps.
pub(super) fn epoch_seconds(time: SystemTime) -> f64 {
    let millis = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    millis as f64 / 1000.0
}

fn civil(time: SystemTime) -> Civil {
    let total = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, seconds) = (total / DAY, total % DAY);
    let (mut year, mut month, mut rest) = (1970, 1, days);
    while rest >= year_length(year) {
        rest -= year_length(year);
        year += 1;
    }
    while rest >= month_length(year, month) {
        rest -= month_length(year, month);
        month += 1;
    }
    // 1 January 1970 was a Thursday.
    Civil { year, month, day: rest + 1, seconds, weekday: (days as usize + 3) % 7 }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn year_length(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn month_length(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_as_published() {
        let example = parse_amz_date("20150830T123600Z").unwrap();
        assert_eq!(example.duration_since(UNIX_EPOCH).unwrap().as_secs(), 1_440_938_160);
        assert_eq!(http_date(example), "Sun, 30 Aug 2015 12:36:00 GMT");
        // The example of RFC 9110.
        let rfc = UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(http_date(rfc), "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn every_day_survives_the_way_there_and_back() {
        for day in 0..60_000 {
            let time = UNIX_EPOCH + Duration::from_secs(day * DAY + day % DAY);
            assert_eq!(parse_amz_date(&amz_date(time)), Some(time));
        }
        for wrong in ["", "20150830T123600", "20150230T123600Z", "20151330T123600Z", "2015083aT123600Z"] {
            assert_eq!(parse_amz_date(wrong), None, "{wrong}");
        }
    }
}
