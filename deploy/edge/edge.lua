-- The parts of the edge that nginx's own configuration cannot express.

local lead = require("lead")

local edge = {}

local TITLES = {
    [4] = '"type":"/problems/invalid-request","title":"The request is malformed"',
    [5] = '"type":"/problems/internal","title":"Internal error"',
}

-- Returns a UUIDv7: 48 bits of milliseconds, and random bits of nginx's own request id.
local function uuid_v7()
    local time = string.format("%012x", ngx.now() * 1000)
    local random = ngx.var.request_id
    return string.format("%s-%s-7%s-%x%s-%s", time:sub(1, 8), time:sub(9), random:sub(1, 3),
        8 + tonumber(random:sub(4, 4), 16) % 4, random:sub(5, 7), random:sub(8, 19))
end

-- Replaces empty conditions by an empty list, which means the same and which the service refuses. nginx drops empty
-- headers, so the request would otherwise be executed without its condition.
function edge.keep_empty_conditions()
    if ngx.var.http_if_match == "" then
        ngx.req.set_header("If-Match", ",")
    end
    if ngx.var.http_if_none_match == "" then
        ngx.req.set_header("If-None-Match", ",")
    end
end

-- Ensures that a command has an idempotency key, and returns the key for the edge's own answers. A client's key is
-- passed on unchanged, so that the service can refuse an empty or a repeated one.
function edge.prepare()
    if ngx.req.is_internal() then
        -- After an internal redirect to an error page. The method has become GET, but the key is still valid.
        return ngx.var.command_key
    end
    edge.keep_empty_conditions()
    if ngx.req.get_method() == "OPTIONS" then
        return ""
    end
    local sent = ngx.var.http_idempotency_key
    if sent then
        return sent
    end
    local made = uuid_v7()
    ngx.req.set_header("Idempotency-Key", made)
    return made
end

-- Replaces an error whose request id is not the edge's by a problem with the right one; complete_body sends its body. A
-- service that cannot parse a request's head does not learn the request id and answers with another.
function edge.complete_head()
    lead.learn()
    local status = ngx.status
    if status ~= 400 and status ~= 414 and status ~= 431 then
        return
    end
    local named = ngx.var.upstream_http_x_request_id
    if not named or named == ngx.var.request_name then
        return
    end
    if ngx.var.allowed_origin ~= "" then
        ngx.header.access_control_allow_origin = ngx.var.allowed_origin
        ngx.header.access_control_expose_headers = ngx.var.exposed_headers
    end
    ngx.header.content_type = "application/problem+json"
    ngx.header.content_length = nil
    ngx.ctx.problem = string.format('{%s,"status":%d,"request_id":"%s"}\n', TITLES[math.floor(status / 100)] or TITLES[4],
        status, ngx.var.request_name)
end

-- Sends the body of the problem that complete_head has prepared.
function edge.complete_body()
    if ngx.status < 400 then
        return
    end
    local problem = ngx.ctx.problem
    if problem then
        ngx.arg[1] = ngx.arg[2] and problem or nil
    end
end

return edge
