-- wrk script: queries for PRODUCTS rows, whose paths begin with FIRST, with the lines HEADERS.

local threads = 0

function setup(thread)
   threads = threads + 1
   thread:set("number", threads)
end

function init()
   requests, count, products = {}, 0, tonumber(os.getenv("PRODUCTS"))
   for product = 1, products do
      requests[product] = "GET " .. os.getenv("FIRST") .. product .. " HTTP/1.1\r\n"
         .. "Host: " .. wrk.host .. ":" .. wrk.port .. "\r\n" .. (os.getenv("HEADERS") or "") .. "\r\n"
   end
end

function request()
   count = count + 1
   return requests[(count + number * math.floor(products / 2)) % products + 1]
end

-- Reports the results.
dofile(os.getenv("RESULTS"))
