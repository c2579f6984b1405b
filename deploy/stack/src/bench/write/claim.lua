-- For wrk: claims of one sale, each by a customer and under an order of its own. RUN begins the orders' ids.

local threads = 0

function setup(thread)
   threads = threads + 1
   thread:set("number", threads)
end

function init()
   count = 0
   local run = os.getenv("RUN")
   local name = run .. "-" .. number .. "-"
   first, second = '{"customer":"c-' .. name, '","quantity":1,"order":"' .. name
   local length = #first + 9 + #second + 9 + #'"}'
   head = "POST /v1/sales/drop/claim HTTP/1.1\r\n"
      .. "Host: " .. wrk.host .. ":" .. wrk.port .. "\r\n"
      .. "Content-Type: application/json\r\nContent-Length: " .. length .. "\r\n\r\n"
end

function request()
   count = count + 1
   local digits = string.format("%09d", count)
   return head .. first .. digits .. second .. digits .. '"}'
end

-- What it saw.
dofile(os.getenv("SEEN"))
