//! Plans a stack: its parts, in the order in which they are shown.

use anyhow::Result;

use crate::certificates::Certificates;
use crate::layout::Layout;
use crate::part::Part;
use crate::provision::Tools;
use crate::services::{self, Profile, Service};
use crate::size::{Purpose, Size};
use crate::{edge, kafka, postgres, redis};

/// Returns only the servers; tests start their own services. `certificates` is that of a secured stack.
pub(crate) fn servers(
    layout: &Layout,
    tools: &Tools,
    brokers: u16,
    redis_cluster: bool,
    purpose: Purpose,
    certificates: Option<&Certificates>,
) -> Result<Vec<Part>> {
    let mut parts = kafka::parts(layout, tools, brokers, purpose, certificates)?;
    parts.extend(postgres::parts(layout, tools, purpose, certificates)?);
    parts.extend(redis::parts(layout, tools, redis_cluster, certificates)?);
    Ok(parts)
}

/// Returns the parts of the whole system.
pub fn system(layout: &Layout, tools: &Tools, size: &Size, profile: Profile) -> Result<Vec<Part>> {
    // Only tests skip the build.
    let purpose = if size.as_built { Purpose::Tests } else { Purpose::Use };
    let certificates = size.secure.then(|| Certificates::open(layout, tools)).transpose()?;
    let mut parts = servers(layout, tools, size.brokers, size.redis_cluster, purpose, certificates.as_ref())?;
    if size.servers_only {
        return Ok(parts);
    }
    if let Some(certificates) = &certificates {
        for name in certified() {
            certificates.of(name)?;
        }
    }
    let services = services::parts(layout, size, profile)?;
    let behind: Vec<_> = services.iter().filter(|part| !part.is_task()).map(|part| part.name.clone()).collect();
    parts.extend(services);
    parts.push(edge::part(layout, tools, size, &behind)?);
    Ok(parts)
}

/// Returns the names of the certificates of HTTP in a secured stack.
pub(crate) fn certified() -> impl Iterator<Item = &'static str> {
    Service::ALL.into_iter().map(Service::name).chain([edge::NAME])
}
