package policy

// Object is one thing that a Compiler knows: an *Endpoint, *Pod, *Namespace, *ServiceAccount, *NetworkSet,
// *HostEndpoint, *EndpointSlice, *Tier or *Policy. Objects are values: once given to a Compiler they do not change.
type Object interface{ object() }

// Namespace is a namespace with its labels.
type Namespace struct {
	Name   string
	Labels map[string]string
}

// ServiceAccount is a service account with its labels.
type ServiceAccount struct {
	Namespace, Name string
	Labels          map[string]string
}

// EndpointSlice is a part of where a service leads.
type EndpointSlice struct {
	Service   ServiceRef
	Endpoints []ServiceEndpoint
}

func (*Endpoint) object()       {}
func (*Pod) object()            {}
func (*Namespace) object()      {}
func (*ServiceAccount) object() {}
func (*NetworkSet) object()     {}
func (*HostEndpoint) object()   {}
func (*EndpointSlice) object()  {}
func (*Tier) object()           {}
func (*Policy) object()         {}
