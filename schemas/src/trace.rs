//! Trace context that a request carries into the log: the W3C `traceparent`, version 00.

/// Returns whether `text` is `00-{trace}-{span}-{flags}` in lower-case hexadecimal, with neither ID all zeros.
pub fn is_traceparent(text: &str) -> bool {
    let mut parts = text.split('-');
    let mut part = |chars: usize| {
        let part = parts.next().filter(|part| part.len() == chars)?;
        part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')).then_some(part)
    };
    let names = (part(2), part(32), part(16), part(2));
    let (Some("00"), Some(trace), Some(span), Some(_)) = names else { return false };
    let is_zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    !is_zero(trace) && !is_zero(span) && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_w3c_format_is_a_context() {
        for text in [
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            "00-00000000000000000000000000000001-0000000000000001-ff",
        ] {
            assert!(is_traceparent(text), "{text}");
        }
        for text in [
            "",
            "ann@example.org",
            "00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01",
            "00 0af7651916cd43dd8448eb211c80319c b7ad6b7169203331 01",
        ] {
            assert!(!is_traceparent(text), "{text}");
        }
    }
}
