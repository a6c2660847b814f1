//! What the system says about a file, as a sentence and a code.

use std::io::{self, ErrorKind};
use std::path::Path;

use hearth_guest::files::FaultCode;
use http::StatusCode;
use nix::errno::Errno;

use crate::reply::Fault;
use crate::users::Identity;

pub(crate) fn coded(status: StatusCode, code: FaultCode, message: impl Into<String>) -> Fault {
    Fault {
        code: Some(code),
        status,
        message: message.into(),
    }
}

/// What the system says, without its number.
pub(crate) fn words(error: &io::Error) -> String {
    let number = error.raw_os_error();
    number.map_or_else(|| error.to_string(), |number| Errno::from_raw(number).desc().to_owned())
}

/// The request itself is wrong.
pub(crate) fn invalid(message: impl Into<String>) -> Fault {
    coded(StatusCode::BAD_REQUEST, FaultCode::Invalid, message)
}

/// It conflicts with what is there.
pub(crate) fn conflict(code: FaultCode, message: impl Into<String>) -> Fault {
    coded(StatusCode::CONFLICT, code, message)
}

/// What the system said about this path to this user.
pub(crate) fn of(path: &Path, user: &Identity, error: &io::Error) -> Fault {
    let at = path.display();
    match error.kind() {
        ErrorKind::NotFound => coded(
            StatusCode::NOT_FOUND,
            FaultCode::NotFound,
            format!("{at} does not exist"),
        ),
        ErrorKind::PermissionDenied => coded(
            StatusCode::FORBIDDEN,
            FaultCode::Denied,
            format!("the user {} has no permission for this at {at}", user.name),
        ),
        ErrorKind::ReadOnlyFilesystem => coded(
            StatusCode::FORBIDDEN,
            FaultCode::Denied,
            format!("{at} is on a file system that is read-only"),
        ),
        ErrorKind::IsADirectory => conflict(FaultCode::IsFolder, format!("{at} is a folder")),
        ErrorKind::NotADirectory => conflict(
            FaultCode::NotFolder,
            format!("{at}, or something on the way to it, is not a folder"),
        ),
        ErrorKind::AlreadyExists => conflict(FaultCode::Exists, format!("{at} exists already")),
        ErrorKind::DirectoryNotEmpty => conflict(FaultCode::NotEmpty, format!("the folder {at} is not empty")),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => coded(
            StatusCode::INSUFFICIENT_STORAGE,
            FaultCode::NoSpace,
            format!("the disk of the VM is full: {at} could not be written; remove something, then try again"),
        ),
        ErrorKind::InvalidFilename => invalid("the path, or a name in it, is longer than Linux allows"),
        _ if error.raw_os_error() == Some(nix::libc::ELOOP) => conflict(
            FaultCode::Conflict,
            format!("the links on the way to {at} lead in a circle"),
        ),
        ErrorKind::CrossesDevices => conflict(
            FaultCode::Conflict,
            format!("{at} is on another file system, where nothing can be renamed to: copy it, then remove it"),
        ),
        ErrorKind::ResourceBusy => conflict(FaultCode::Conflict, format!("{at} is in use, as a mount point is")),
        _ => Fault {
            message: format!("{at}: {}", words(error)),
            ..Fault::from_io("", error)
        },
    }
}
