package httpapi

import (
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts requests by method, pattern and status, and times them by method and pattern.
// Users and rooms are never labels: their number has no bound.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

// newMetrics registers the metrics, or shares those that another Router registered.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	if reg == nil {
		return nil, nil
	}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "myelin_http_requests_total",
			Help: "Requests by method, route and status; 499 is a client that hung up.",
		}, []string{"method", "route", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "myelin_http_request_seconds",
			Help:    "Time from a request's arrival to its written answer, waiting of long-polls included.",
			Buckets: []float64{.0001, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5, 30},
		}, []string{"method", "route"}),
	}
	var known prometheus.AlreadyRegisteredError
	if err := reg.Register(m.requests); errors.As(err, &known) {
		m.requests = known.ExistingCollector.(*prometheus.CounterVec)
	} else if err != nil {
		return nil, err
	}
	if err := reg.Register(m.duration); errors.As(err, &known) {
		m.duration = known.ExistingCollector.(*prometheus.HistogramVec)
	} else if err != nil {
		return nil, err
	}
	return m, nil
}

// routeMetrics are one endpoint's metrics, made when it is first called and found without a lookup after.
type routeMetrics struct {
	metrics       *metrics
	method, route string
	once          sync.Once
	duration      prometheus.Observer
	mu            sync.Mutex // held to add to codes
	codes         atomic.Pointer[[]codeCounter]
}

type codeCounter struct {
	code    int
	counter prometheus.Counter
}

// route prepares the metrics of an endpoint; nil counts nothing.
func (m *metrics) route(method, route string) *routeMetrics {
	if m == nil {
		return nil
	}
	return &routeMetrics{metrics: m, method: method, route: route}
}

func (m *routeMetrics) observe(status int, took time.Duration) {
	if m == nil {
		return
	}
	m.once.Do(func() { m.duration = m.metrics.duration.WithLabelValues(m.method, m.route) })
	m.duration.Observe(took.Seconds())
	m.counter(status).Inc()
}

// counter finds the counter of a status among the few that an endpoint ever answers.
func (m *routeMetrics) counter(status int) prometheus.Counter {
	if known := m.codes.Load(); known != nil {
		for _, c := range *known {
			if c.code == status {
				return c.counter
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	counter := m.metrics.requests.WithLabelValues(m.method, m.route, strconv.Itoa(status))
	var next []codeCounter
	if known := m.codes.Load(); known != nil {
		next = append(next, *known...)
	}
	next = append(next, codeCounter{status, counter})
	m.codes.Store(&next)
	return counter
}
