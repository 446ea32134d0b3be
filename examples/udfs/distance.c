// Great-circle distance in kilometres between two points given in degrees (haversine formula).
#include <math.h>

#define EARTH_RADIUS_KM 6371.0088 // mean radius, IUGG
#define RADIANS_PER_DEGREE 0.017453292519943295

__attribute__((export_name("distance")))
double distance(double lat1, double lon1, double lat2, double lon2) {
    double half_lat = (lat2 - lat1) * RADIANS_PER_DEGREE / 2;
    double half_lon = (lon2 - lon1) * RADIANS_PER_DEGREE / 2;
    double a = sin(half_lat) * sin(half_lat)
             + cos(lat1 * RADIANS_PER_DEGREE) * cos(lat2 * RADIANS_PER_DEGREE)
             * sin(half_lon) * sin(half_lon);
    return 2 * EARTH_RADIUS_KM * asin(fmin(1.0, sqrt(a)));
}
