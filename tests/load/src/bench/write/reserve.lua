-- wrk script: reservations, each with its own order, of PRODUCTS products whose ids begin with PREFIX. RUN is the
-- prefix of the order ids. Requests are concatenated by hand: wrk.format would take longer than the answer.

local threads = 0

function setup(thread)
   threads = threads + 1
   thread:set("number", threads)
end

function init()
   heads, count, products = {}, 0, tonumber(os.getenv("PRODUCTS"))
   local run = os.getenv("RUN")
   first_half = '{"order":"' .. run .. "-" .. number .. "-"
   local length = #first_half + 9 + #'","quantity":1}'
   for product = 1, products do
      heads[product] = "POST /v1/products/" .. os.getenv("PREFIX") .. product .. "/reserve HTTP/1.1\r\n"
         .. "Host: " .. wrk.host .. ":" .. wrk.port .. "\r\n"
         .. "Content-Type: application/json\r\nContent-Length: " .. length .. "\r\n\r\n"
   end
end

function request()
   count = count + 1
   -- The threads are half the products apart, so that they do not request the same products at the same time.
   local product = (count + number * math.floor(products / 2)) % products + 1
   return heads[product] .. first_half .. string.format("%09d", count) .. '","quantity":1}'
end

-- Reports the results.
dofile(os.getenv("RESULTS"))
