-- wrk script: claims of one sale, each with its own customer and order. RUN is the prefix of the order ids.

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

-- Reports the results.
dofile(os.getenv("RESULTS"))
