//! `hearth openapi`: the description of the HTTP API that this binary's server has.

use crate::failure::Failure;
use crate::output;

pub(crate) fn run() -> Result<u8, Failure> {
    output::print_json(hearth_server::openapi_document())?;
    Ok(0)
}
