//! What an error of the kernel means to the engine: whose fault it is, and what is known afterwards.

use std::io;

use nix::libc;
use proxy_core::backend::{ApplyError, Rejection};

use crate::schema::op::Op;

/// What is to be said of an operation that the kernel refused, if a Service can be blamed for it.
pub(crate) fn rejection(op: &Op, owner: Option<u32>, errno: i32) -> Result<Rejection, ApplyError> {
    let error = io::Error::from_raw_os_error(errno);
    // A virtual server that should be there is not: what else is missing must be read.
    let astray = matches!((op, errno), (Op::SetServer(_) | Op::SetDestination { .. }, libc::ESRCH));
    if astray || owner.is_none() || !is_an_objects_fault(errno) {
        return Err(lost(format!("{op}: {error}")));
    }
    let reason = match (op, errno) {
        (Op::NewServer(service, _) | Op::SetServer(service), libc::ENOENT) => {
            format!("{op}: this kernel has no scheduler {0} (module ip_vs_{0})", service.scheduler)
        }
        _ => format!("{op}: {error}"),
    };
    Ok(Rejection { owner, reason })
}

/// Some errors are nobody's fault but the kernel's.
pub(crate) fn is_an_objects_fault(errno: i32) -> bool {
    !matches!(
        errno,
        libc::ENOMEM
            | libc::ENOBUFS
            | libc::EBUSY
            | libc::EAGAIN
            | libc::ENFILE
            | libc::EINTR
            | libc::ENODEV
            | libc::ENETDOWN
            | libc::EPERM
    )
}

pub(crate) fn refused(reason: String) -> ApplyError {
    ApplyError::Refused { reason, culprit: None }
}

pub(crate) fn lost(error: impl ToString) -> ApplyError {
    ApplyError::Lost(io::Error::other(error.to_string()))
}
