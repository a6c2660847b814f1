//! What drivers of real VMs do with their calls alike.

use tracing::Instrument as _;

use crate::DriverError;

/// Runs a call to its end even when its caller stops waiting: a half-done one would hold no lock and leave files, processes or instances behind.
pub(crate) async fn to_the_end<T: Send + 'static>(
    call: impl Future<Output = Result<T, DriverError>> + Send + 'static,
) -> Result<T, DriverError> {
    tokio::spawn(call.in_current_span())
        .await
        .unwrap_or_else(|error| Err(DriverError::unknown("the call was broken off").caused_by(error)))
}

/// Whether names of things on the host can begin with an installation's label.
pub(crate) fn check_installation(label: &str) -> Result<(), DriverError> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    if label.is_empty() || label.len() > 32 || !label.bytes().all(legal) {
        return Err(DriverError::permanent(
            "an installation's label is 1 to 32 characters of a-z, 0-9, '-' and '_'",
        ));
    }
    Ok(())
}
