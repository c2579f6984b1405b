//! Plans a stack: its parts, in the order in which they are shown.

use std::path::Path;

use anyhow::Result;

use crate::accounts::Secured;
use crate::certificates::Certificates;
use crate::layout::Layout;
use crate::part::Part;
use crate::provision::Tools;
use crate::services::{self, GrowTools, Profile, Service};
use crate::size::{Purpose, Size};
use crate::{edge, kafka, observe, postgres, redis};

/// Returns only the servers; tests start their own services.
pub(crate) fn servers(
    layout: &Layout,
    tools: &Tools,
    brokers: u16,
    redis_cluster: bool,
    purpose: Purpose,
    secured: Option<Secured<'_>>,
) -> Result<Vec<Part>> {
    let mut parts = kafka::parts(layout, tools, brokers, purpose, secured)?;
    parts.extend(postgres::parts(layout, tools, purpose, secured.map(|secured| secured.certificates))?);
    parts.extend(redis::parts(layout, tools, redis_cluster, secured)?);
    Ok(parts)
}

/// Returns the parts of the whole system.
pub fn system(layout: &Layout, tools: &Tools, size: &Size, profile: Profile) -> Result<Vec<Part>> {
    let mut parts = servers_of(layout, tools, &[size])?;
    if size.servers_only {
        return Ok(parts);
    }
    if size.secure {
        let certificates = Certificates::open(layout, tools)?;
        certified().try_for_each(|name| certificates.of(name).map(drop))?;
    }
    let services = services::parts(layout, size, profile)?;
    let behind: Vec<_> = services.iter().filter(|part| !part.is_task()).map(|part| part.name.clone()).collect();
    parts.extend(services);
    parts.push(edge::part(layout, tools, size, &behind)?);
    if size.observe {
        parts.extend(observe::parts(layout, size)?);
    }
    Ok(parts)
}

/// Returns the parts that finish the growth of a log whose services cannot start any more, because it is closed.
pub(crate) fn growth(layout: &Layout, tools: &Tools, [now, grown]: [&Size; 2], profile: Profile) -> Result<Vec<Part>> {
    let mut parts = servers_of(layout, tools, &[now, grown])?;
    let servers: Vec<_> = parts.iter().map(|part| part.name.clone()).collect();
    let programs = GrowTools::new(layout, tools, [now, grown], profile)?;
    parts.extend(programs.parts(layout).into_iter().map(|part| part.needing(&servers)));
    Ok(parts)
}

/// Returns the parts that fill the tables from the log.
pub(crate) fn recovery(layout: &Layout, tools: &Tools, size: &Size, profile: Profile) -> Result<Vec<Part>> {
    let mut parts = servers_of(layout, tools, &[size])?;
    let servers: Vec<_> = parts.iter().map(|part| part.name.clone()).collect();
    parts.extend(services::recovery(layout, tools, size, profile, &servers)?);
    Ok(parts)
}

/// Returns the parts that write an archive to the topics of a stack.
pub(crate) fn restore(
    layout: &Layout,
    tools: &Tools,
    size: &Size,
    profile: Profile,
    folder: &Path,
) -> Result<Vec<Part>> {
    let mut parts = servers_of(layout, tools, &[size])?;
    parts.extend(services::restore(layout, size, profile, folder)?);
    Ok(parts)
}

/// Returns the servers of a stack, for the logs of these sizes.
fn servers_of(layout: &Layout, tools: &Tools, logs: &[&Size]) -> Result<Vec<Part>> {
    let size = logs[0];
    // Only tests skip the build.
    let purpose = if size.as_built { Purpose::Tests } else { Purpose::Use };
    let certificates = size.secure.then(|| Certificates::open(layout, tools)).transpose()?;
    let secured = certificates.as_ref().map(|certificates| Secured { certificates, logs });
    servers(layout, tools, size.brokers, size.redis_cluster, purpose, secured)
}

/// Returns the names of the certificates of HTTP in a secured stack.
pub(crate) fn certified() -> impl Iterator<Item = &'static str> {
    Service::ALL.into_iter().map(Service::name).chain([edge::NAME])
}
